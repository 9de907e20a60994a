"""One rank of the distributed reset tests: python distributed_worker.py KIND RANK WORLD FILE OUT."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from tests.interventions import nets
from torch import distributed as dist
from torch import nn

from supple.errors import SuppleError
from supple.interventions import (
    CCBP,
    FIRE,
    L2,
    UPGD,
    CChain,
    ContinualBackprop,
    HareTortoise,
    L2Init,
    LayerReset,
    PlasticityInjection,
    ReDo,
    ReGraMa,
    ResetEvent,
    SelfNormalizedReset,
    ShrinkAndPerturb,
    SpectralRegularization,
)

REPLICATED = {
    "cbp": ContinualBackprop(replacement_rate=0.2, maturity=0, bias_transfer=True, cap=None),
    "cbp-lazy": ContinualBackprop(replacement_rate=0.2, maturity=0, utility="lazy"),
    "redo": ReDo(tau=0.6, every=2),
    "regrama": ReGraMa(tau=0.6, every=2),
    "regrama-preactivation": ReGraMa(tau=0.6, every=2, score="preactivation"),
    "snr": SelfNormalizedReset(threshold=40, update=20),
    "ccbp": CCBP(rate=0.5, every=5),
    "layer": LayerReset(every=10),
}
SHARDED = {
    **REPLICATED,
    "injection": PlasticityInjection(head="fc3", every=3),
    "fire": FIRE(every=3),
    "hare": HareTortoise(every=3),
    "upgd": UPGD(),
    "l2": L2(coef=0.01),
    "l2init": L2Init(coef=0.01),
    "perturb": ShrinkAndPerturb(every=3),
    "cchain": CChain(),
    "spectral": SpectralRegularization(coef=0.01),
}


def _setting() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, topo = nets.mlp(6, 12, 8, 3)
    with torch.no_grad():
        model.fc1.bias[:4] = -3.0
    return model, topo


def _spread(model: nn.Module) -> float:
    """The largest difference of any parameter between any two ranks."""
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    high, low = flat.clone(), flat.clone()
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    return float((high - low).max())


def replicated(name: str, rank: int) -> dict[str, Any]:
    """60 steps on this rank's own data; the spread of the replicas after every step, and all resets."""
    model, topo = _setting()
    ddp = nn.parallel.DistributedDataParallel(model)
    opt = torch.optim.Adam(ddp.parameters(), lr=1e-2)
    handle = REPLICATED[name].attach(ddp, opt, topology=topo)
    torch.manual_seed(100 + rank)  # other data and another global random state on every rank
    worst = 0.0
    for step in range(60):
        x = torch.randn(0 if rank == 1 and step == 30 else 8, 6)  # once, a rank has nothing to say
        opt.zero_grad()
        ddp(x).square().sum().backward()
        opt.step()
        worst = max(worst, _spread(model))
    events = [(e.step, e.layer, list(e.units)) for e in handle.log if isinstance(e, ResetEvent)]
    return {"spread": worst, "events": events}


def sharded(name: str) -> dict[str, Any]:
    """Either refused before any write, or equal to the same run in one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def run(shard: bool) -> torch.Tensor:
        model, topo = _setting()
        if shard:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for layer in (model.fc1, model.fc2, model.fc3):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        opt = torch.optim.SGD(model.parameters(), lr=0.05)
        keywords = {"topology": topo} if name in REPLICATED else {}
        SHARDED[name].attach(model, opt, **keywords)
        for step in range(6):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        return torch.cat([p.detach().flatten() for p in whole])

    try:
        together = run(True)
    except SuppleError as error:
        return {"refused": str(error)}
    return {"difference": float((together - run(False)).abs().max())}


def main() -> None:
    kind, rank, world, file, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    if kind == "replicated":
        names = list(REPLICATED) if world == 2 else ["cbp", "regrama"]  # two say what four ranks can break
        ends = {name: replicated(name, rank) for name in names}
    else:
        ends = {name: sharded(name) for name in SHARDED}
    with open(f"{out}.{rank}", "w", encoding="utf-8") as target:
        json.dump(ends, target)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
