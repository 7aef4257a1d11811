"""Tasks that are started once per rank; this file is also a script and a module that does what they do.

python torch_tasks.py FILE WORD…     writes what this rank was given and has computed into FILE.RANK
"""

from __future__ import annotations

import json
import os
import sys
import time


def total():
    """The sum, over all ranks, of one more than their rank."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    value = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(value)
    dist.destroy_process_group()
    return value.item()


def rank():
    return int(os.environ["RANK"])


def hexed(words):
    return [os.fsencode(word).hex() for word in words]


def reduce(words, password=None):
    """What this rank has, printed line by line; its value is that of the whole."""
    for number in range(50):
        print("rank", rank(), "line", number)
    if password:
        print("the password is", password, os.environ["TOKEN"])
    return {"rank": rank(), "total": total(), "words": hexed(words)}


def fail_or_hang(path):
    """Rank 1 fails once rank 0 is there, which would never end."""
    if rank() == 1:
        until_there(path)
        raise ValueError("rank 1 cannot go on")
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def fail_in_first_attempt(path):
    """Rank 1 fails in the first attempt, when rank 0 has its value and waits."""
    attempt = int(os.environ["NEMORUN_ATTEMPT"])
    if attempt == 1 and rank() == 1:
        raise ValueError("not yet")
    return [attempt, rank()]


def fail_in_first_round():
    """As above, within one attempt at the job: by a launcher that starts its ranks again."""
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if restarts == 0 and rank() == 1:
        raise ValueError("not yet")
    return [restarts, rank(), total()]


def until_there(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


if __name__ == "__main__":
    path, *words = sys.argv[1:]
    with open(f"{path}.{rank()}", "w") as file:
        json.dump({"total": None if "WITHOUT_TORCH" in os.environ else total(), "words": hexed(words)}, file)
