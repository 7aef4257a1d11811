"""Tasks that tests run as jobs; any Python from 3.8 on can run them, with nothing installed."""

from __future__ import annotations

import os
import sys
import time


def double(number):
    return 2 * number


def same(value):
    return value


def fail(message):
    raise ValueError(message)


def value_of(kind):
    """Values of every kind that a record must tell apart."""
    return {
        "json": {"a": [1, 2.5, None, True, "é"]},
        "tuple": (1, (2, "x")),
        "keys": {1: "one", "_target_": "x", (2, 3): None},
        "float": [float("inf"), -0.0],
        "pickled": {1, 2, 3},
        "unpicklable": (number for number in ()),
        "shy": Shy(),
    }[kind]


class Shy:
    """Can be neither pickled nor shown."""

    def __reduce__(self):
        raise RuntimeError("not me")

    def __repr__(self):
        raise RuntimeError("nor this")


def hexed(words):
    """Texts as the bytes the system knows them by."""
    return [os.fsencode(word).hex() for word in words]


def environment(names):
    """Variables of the environment as the system holds them."""
    return [os.environb[name.encode()].hex() for name in names]


def leave(code):
    """Exit as a program does that was told this code, or this text."""
    sys.exit(code)


def leave_at_once(code):
    os._exit(code)


def write_and_wait(path, seconds=600.0):
    """Say which process this is, then wait."""
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.replace(path + ".new", path)
    time.sleep(seconds)


def print_and_wait(path):
    print("no line end é", end="")
    write_and_wait(path)


def ignore_sigterm(path):
    """Wait, whatever one is asked."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_and_wait(path)


def clean_up_on_sigterm(path):
    """Take SIGTERM as a reason to write something and go."""
    import signal

    def leave_word(number, frame):
        with open(path + ".end", "w") as file:
            file.write("cleaned up")
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave_word)
    write_and_wait(path)


def fail_until(attempt):
    """Fail in each attempt before this one; its number is the value."""
    number = int(os.environ["NEMORUN_ATTEMPT"])
    print("attempt", number)
    if number < attempt:
        raise ValueError(f"attempt {number} fails")
    return number


def fail_first(path):
    """Fail, unless that has been done."""
    if os.path.exists(path):
        print("second")
        return "second"
    print("first")
    with open(path, "w"):
        raise ValueError("the first fails")


def text_of(size):
    return "x" * size


def processors():
    return sorted(os.sched_getaffinity(0))


def use_memory(megabytes, children=0, shared=False):
    """Hold so much, and have each child hold as much: memory of its own, or (`shared`) the same pages."""
    held = bytearray(b"x") * (megabytes << 20) if shared else b""
    pids = []
    for _ in range(children):
        pid = os.fork()
        if not pid:
            own = held or bytearray(b"x") * (megabytes << 20)
            time.sleep(2 if own else 0)
            os._exit(0)
        pids.append(pid)
    held = held or bytearray(b"x") * (megabytes << 20)
    time.sleep(2)
    for pid in pids:
        os.waitpid(pid, 0)
    return len(held) >> 20


def be_busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def log_something():
    import logging

    logging.getLogger("mine").debug("a debug line")
    logging.getLogger("mine").warning("a warning line")
    return logging.getLogger().level


def python_version():
    return [sys.executable, list(sys.version_info[:2]), "nemo_run" in sys.modules]


def interpreter():
    """What a task can see of how its interpreter was started."""
    import gc
    import locale
    import signal
    import threading

    main = sys.modules["__main__"]
    return {
        "argv": sys.argv,
        "path": sys.path,
        "flags": str(sys.flags),
        "executable": sys.executable,
        "warnings": sys.warnoptions,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "stdin": [sys.stdin.fileno(), sys.stdin.read(), os.path.samestat(os.fstat(0), os.stat(os.devnull))],
        "streams": [
            [s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.fileno()]
            for s in (sys.stdout, sys.stderr)
        ],
        "stdout is stderr": os.path.samestat(os.fstat(1), os.fstat(2)),
        "files": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)),
        "signals": {n: str(signal.getsignal(n)) for n in range(1, 32)},
        "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "wakeup": signal.set_wakeup_fd(-1),
        "leads its session": os.getsid(0) == os.getpid() == os.getpgid(0),
        "threads": threading.active_count(),
        "umask": _umask(),
        "nice": os.nice(0),
        "locale": locale.setlocale(locale.LC_ALL),
        "encoding": sys.getfilesystemencoding(),
        "recursion": sys.getrecursionlimit(),
        "collector": [gc.isenabled(), gc.get_threshold()],
        "main": [main.__name__, getattr(main, "__spec__", None) is None],
        "displayed": [sys.excepthook is sys.__excepthook__, sys.gettrace(), sys.getprofile()],
        "children": _children(),
    }


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


def command_line():
    """What the system takes this process for."""
    with open("/proc/self/cmdline", "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]


def end_slowly(path):
    """Return before a thread, an exit handler and what C has buffered are done."""
    import atexit
    import ctypes
    import threading

    def late():
        time.sleep(0.3)
        print("the thread is done")

    atexit.register(print, "the exit handler is done")
    threading.Thread(target=late).start()
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    libc.fputs(b"flushed", ctypes.c_void_p(libc.fopen(os.fsencode(path + ".c"), b"w")))
    left_open = open(path, "w")  # noqa: SIM115  # closed by nobody, as in many a script
    left_open.write("flushed")
    sys.modules["tasks"].kept = left_open
    return "value"


def in_pool(method, count):
    """Have other processes do it, by each of the two ways there are, and by both libraries."""
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        doubled = pool.map(double, range(count))
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        return [doubled, list(pool.map(double, range(count)))]


def spread(path):
    """Leave children of every kind behind this process, each waiting: (their numbers are in `path`)."""
    pids = [os.getpid(), _forked(), _forked(os.setsid), _forked(_grandchild)]
    with open(path + ".new", "w") as file:
        file.write(" ".join(map(str, pids)))
    os.replace(path + ".new", path)
    time.sleep(600)


def _forked(first=None):
    pid = os.fork()
    if not pid:
        if first:
            first()
        time.sleep(600)
        os._exit(0)
    return pid


def _grandchild():
    os.setsid()
    if os.fork():
        time.sleep(600)
        os._exit(0)


def secret_and_environment(token: str, size: int = 0) -> tuple[str, int, list[str]]:
    """What a secret argument is, and the variables that could still tell it to a child process."""
    left = [name for name in os.environ if name.startswith("NEMORUN_SECRET_")]
    return token, size, left


def note_in_job(text):
    """Leave a file among the job's artifacts."""
    with open(os.path.join(os.environ["NEMORUN_JOB_DIR"], "artifacts", "note"), "w") as file:
        file.write(text)


def serve_once(text, port=8123):
    """Tell one caller something."""
    import socket

    with socket.create_server(("", port)) as server:
        caller, _ = server.accept()
        with caller:
            caller.sendall(text.encode())


def ask_server(host, port=8123):
    """What a server says, once it is there."""
    import socket

    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as server:
                return server.makefile().read()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def note_down(path, name, seconds=0.0):
    """Append a line to a file, in one write, and return the name."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, (name + "\n").encode())
    os.close(fd)
    time.sleep(seconds)
    return name
