"""Tensor names of transformers' vision transformers against timm's, in the form that ``Names`` takes.

timm's ``attn.qkv`` stands here as ``attn.q``, ``attn.k`` and ``attn.v``, which it is made of.
"""

DINOV2 = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.*.norm1.", "blocks.*.norm1."),
    ("encoder.layer.*.attention.attention.query.", "blocks.*.attn.q."),
    ("encoder.layer.*.attention.attention.key.", "blocks.*.attn.k."),
    ("encoder.layer.*.attention.attention.value.", "blocks.*.attn.v."),
    ("encoder.layer.*.attention.output.dense.", "blocks.*.attn.proj."),
    ("encoder.layer.*.layer_scale1.lambda1", "blocks.*.ls1.gamma"),
    ("encoder.layer.*.norm2.", "blocks.*.norm2."),
    ("encoder.layer.*.layer_scale2.lambda1", "blocks.*.ls2.gamma"),
    ("layernorm.", "norm."),
)
MLP = (
    ("encoder.layer.*.mlp.fc1.", "blocks.*.mlp.fc1."),
    ("encoder.layer.*.mlp.fc2.", "blocks.*.mlp.fc2."),
)
SWIGLU = (
    ("encoder.layer.*.mlp.weights_in.", "blocks.*.mlp.fc1."),
    ("encoder.layer.*.mlp.weights_out.", "blocks.*.mlp.fc2."),
)
DINOV3 = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ("layer.*.norm1.", "blocks.*.norm1."),
    ("layer.*.attention.q_proj.", "blocks.*.attn.q."),
    ("layer.*.attention.k_proj.", "blocks.*.attn.k."),
    ("layer.*.attention.v_proj.", "blocks.*.attn.v."),
    ("layer.*.attention.o_proj.", "blocks.*.attn.proj."),
    ("layer.*.layer_scale1.lambda1", "blocks.*.gamma_1"),
    ("layer.*.norm2.", "blocks.*.norm2."),
    ("layer.*.layer_scale2.lambda1", "blocks.*.gamma_2"),
    ("norm.", "norm."),
)
DINOV3_MLP = (("layer.*.mlp.up_proj.", "blocks.*.mlp.fc1."), ("layer.*.mlp.down_proj.", "blocks.*.mlp.fc2."))
DINOV3_SWIGLU = (
    ("layer.*.mlp.gate_proj.", "blocks.*.mlp.fc1_g."),
    ("layer.*.mlp.up_proj.", "blocks.*.mlp.fc1_x."),
    ("layer.*.mlp.down_proj.", "blocks.*.mlp.fc2."),
)


VIT = (
    *(pair for pair in DINOV2 if ".norm" not in pair[0]),
    ("encoder.layer.*.layernorm_before.", "blocks.*.norm1."),
    ("encoder.layer.*.layernorm_after.", "blocks.*.norm2."),
    ("encoder.layer.*.intermediate.dense.", "blocks.*.mlp.fc1."),
    ("encoder.layer.*.output.dense.", "blocks.*.mlp.fc2."),
)
"""``ViTModel``, and the encoder of ``ViTMAEModel``."""

OF_FILES = (
    (r"^(encoder\.)?layers?\.(?=\d)", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
"""Names of modules in transformers 5 -> names in files, as regular expressions."""
