"""Work in processes of their own, forked from one that has imported everything, so that a real run takes a second."""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hf_tfenc.training.run", "torch.distributed.tensor", "matplotlib.pyplot"])
TIMEOUT = 120


def start(work, arguments, environment, log):
    os.environ.pop("ACCELERATE_USE_CPU", None)  # which a user would not have set
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as it is in a real run; else workers would start slowly
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*arguments)


class Processes:
    """`work(*arguments)` in one or more processes, which find each other as under torchrun. Their output is in a file."""

    def __init__(self, work, arguments, log, processes=1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log, self.processes = Path(log), []
        for rank in range(processes):
            environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            if processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
                environment |= {"MASTER_PORT": str(port)}
            process = CONTEXT.Process(target=start, args=(work, arguments, environment, str(log)))
            process.start()
            self.processes.append(process)

    def send(self, number):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self):
        """The exit codes, when all processes have ended."""
        end = time.monotonic() + TIMEOUT
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hung = [process for process in self.processes if process.is_alive()]
        for process in hung:
            process.kill()
            process.join()
        assert not hung, f"hung:\n{self.output}"
        return [process.exitcode for process in self.processes]

    def finish(self):
        """Wait for a good end. What was said."""
        assert set(self.wait()) == {0}, self.output
        return self.output

    @property
    def output(self):
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text):
        """Until something is said."""
        end = time.monotonic() + TIMEOUT
        while text not in self.output:
            alive = any(process.is_alive() for process in self.processes)
            time.sleep(0.005)
            assert (alive and time.monotonic() < end) or text in self.output, self.output


def train(argv, before):
    from hf_tfenc.training.run import main

    if before is not None:
        before()
    main(argv)


class Run(Processes):
    """One call of train.py. `before` is called in each process first."""

    def __init__(self, options, log, processes=1, before=None):
        argv = []
        for name, value in options.items():
            argv += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
        super().__init__(train, (argv, before), log, processes)
