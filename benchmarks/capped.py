"""`essa` on a GPU of which torch may take only so much, to see what would fit a smaller one.

python benchmarks/capped.py 24 bench step backbone.name=dinov2_vitg14 batch_size=8 adapter=apla --json

The cap is on torch's allocator, less what a CUDA context takes; a verb that starts processes of its own isn't capped.
"""

import sys
from pathlib import Path

GIB = 2**30
CONTEXT_GIB = 0.5
"""Of CUDA itself, outside of torch's count: an assumption."""


def main() -> int:
    import torch

    from essa_dist.cli.command import main as essa

    gib, *words = sys.argv[1:]
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    torch.cuda.set_per_process_memory_fraction(min(1.0, (float(gib) - CONTEXT_GIB) / total))
    return essa(words)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
