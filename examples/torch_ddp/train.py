"""The task: each rank trains on its share of the data; DistributedDataParallel keeps their models equal."""

from __future__ import annotations

import os


def train(epochs: int = 10, points: int = 4096, rate: float = 0.01, seed: int = 0) -> dict[str, float]:
    """Teach a small network to tell two spirals apart; what rank 0 returns is the job's value."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, device = dist.get_rank(), _device()
    torch.manual_seed(seed)
    data = TensorDataset(*_spirals(points))
    sampler = DistributedSampler(data, seed=seed)
    batches = DataLoader(data, batch_size=128, sampler=sampler)
    layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    model = DistributedDataParallel(layers.to(device))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        loss = torch.zeros((), device=device)
        for features, labels in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(features.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
        print(f"rank {rank}: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}")

    seen = torch.zeros(2, device=device)  # how many were told right, and how many there were
    with torch.no_grad():
        for features, labels in batches:
            seen[0] += (model(features.to(device)).argmax(1) == labels.to(device)).sum()
            seen[1] += len(labels)
    dist.all_reduce(seen)
    if rank == 0:
        _save(layers.state_dict())
    dist.destroy_process_group()
    return {"accuracy": round((seen[0] / seen[1]).item(), 3), "ranks": int(os.environ["WORLD_SIZE"])}


def _device():
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return torch.device("cuda")


def _spirals(count):
    """Points on two spirals that turn around each other, and which of the two each is on."""
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    turn = torch.rand(count, generator=generator) * 7 + 1
    angle = turn + labels * torch.pi
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1) / 4
    return points + torch.randn(count, 2, generator=generator) * 0.15, labels


def _save(state):
    """Into the job's artifacts; where nemo_run is not installed, its folder is known all the same."""
    import torch

    folder = os.path.join(os.environ["NEMORUN_JOB_DIR"], "artifacts")
    os.makedirs(folder, exist_ok=True)
    torch.save(state, os.path.join(folder, "model.pt"))
