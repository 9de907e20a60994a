"""One rank of the data-parallel test: python ddp_worker.py RANK WORLD FILE OUT."""

from __future__ import annotations

import sys

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as nnf

from supple.interventions import (
    TRAC,
    CChain,
    FeatureRank,
    Parseval,
    ShrinkAndPerturb,
    SpectralRegularization,
    Wasserstein,
    WeightClipping,
)
from supple.interventions.cchain import CChainHandle

METHODS = {
    "cchain": lambda: CChain(coef=5.0, fraction=0.5),
    "cchain-auto": lambda: CChain(target=1e-3, window=5, start=3),
    "cchain-apart": lambda: CChain(coef=5.0, sync=False),
    "spectral": lambda: SpectralRegularization(coef=0.1),
    "feature_rank": lambda: FeatureRank(coef=0.1),
    "parseval": lambda: Parseval(coef=0.01),
    "wasserstein": lambda: Wasserstein(coef=0.1),
    "clipping": lambda: WeightClipping(kappa=1.0),
    "trac": lambda: TRAC(start=0.1),
    "shrink_perturb": lambda: ShrinkAndPerturb(shrink=0.9, perturb=0.1, every=5),
}


def run(method: str, rank: int) -> tuple[torch.Tensor, float]:
    """Parameters and coefficient after 25 steps on this rank's own data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    ddp = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(ddp.parameters(), lr=1e-2)
    handle = METHODS[method]().attach(ddp, optimizer)
    torch.manual_seed(100 + rank)  # other data and another global random state on every rank
    for step in range(25):
        x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
        optimizer.zero_grad()
        loss = nnf.cross_entropy(ddp(x), y)
        if isinstance(handle, CChainHandle):
            handle.observe_loss(loss)
        loss.backward()
        if rank == 1 and step == 10 and method == "cchain":
            handle.reference = None  # a rank that has nothing to say must not stall the others
        optimizer.step()
    extra = float(handle.coefficient()) if isinstance(handle, CChainHandle) else 0.0
    return torch.cat([p.detach().flatten() for p in model.parameters()]), extra


def main() -> None:
    rank, world, file, out = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    torch.save({method: run(method, rank) for method in METHODS}, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
