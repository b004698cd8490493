"""Features, neighbours and retrieval as one rank of a launch gets them. Started by tests, one process a rank.

usage: python probes_of.py FOLDER
Writes FOLDER/RANK.safetensors.
"""

import sys

import torch
from safetensors.torch import save_file

from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.data.shards import open_packed
from essa_dist.distributed.collectives import leave, rank
from essa_dist.evaluation.features import extract_features
from essa_dist.evaluation.knn import nearest_neighbours
from essa_dist.evaluation.ranks import everywhere, join
from essa_dist.evaluation.retrieval import retrieval_scores
from essa_dist.evaluation.samples import Samples

N, M, C, K = 700, 1100, 5, 3  # three chunks of k-NN and five of retrieval, the last ones shorter


def found() -> dict[str, torch.Tensor]:
    """On every rank the whole of it."""
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name="vit_tiny_patch16_224", weights="random"))
    images = open_packed("assets/blood_cells:train")
    random = torch.Generator().manual_seed(1)
    bank = Samples(torch.randn(N, C, generator=random), torch.randint(K, (N,), generator=random))
    test = Samples(torch.randn(M, C, generator=random), torch.randint(K, (M,), generator=random))
    neighbours = nearest_neighbours(bank.features, test.features, k=9, spread=True)
    features = extract_features(backbone, images, image_size=32, batch_size=61, spread=True)
    few = retrieval_scores(bank, test.take(torch.tensor([4, 2])), (1, 5), spread=True)  # a rank has none
    return (
        {"features": features.features, "labels": features.labels, "few": few["map"]}
        | {"similarity": neighbours.similarity, "member": neighbours.member}
        | retrieval_scores(bank, test, (1, 5), spread=True)
    )


if __name__ == "__main__":
    join(torch.device("cpu"))
    assert everywhere(True)
    assert not everywhere(rank() == 0)
    save_file({name: t.contiguous() for name, t in found().items()}, f"{sys.argv[1]}/{rank()}.safetensors")
    leave()
