"""Runs one training job as N processes on this machine, and starts it again when a process dies.

    python launch/local.py --processes 2 -- mgjax train configs/nano.py --stage all --out runs/nano

Each process is the command itself with MGJAX_COORDINATOR, MGJAX_NUM_PROCESSES and MGJAX_PROCESS_ID set and --resume
added, so a restart goes on from the newest checkpoint. With GPUs, each process gets its share of them (--gpus).
SIGTERM and Ctrl-C are passed on: the job saves and leaves, and is not started again.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

BAD_INPUT = 2  # exit status of `mgjax` when what it was given cannot be used: starting again would not help


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command: list[str], count: int, gpus: int) -> list[subprocess.Popen]:
    job = {"MGJAX_COORDINATOR": f"127.0.0.1:{free_port()}", "MGJAX_NUM_PROCESSES": str(count)}

    def process(index: int) -> subprocess.Popen:
        env = {**os.environ, **job, "MGJAX_PROCESS_ID": str(index)}
        if gpus:
            share = gpus // count
            env["CUDA_VISIBLE_DEVICES"] = ",".join(str(index * share + gpu) for gpu in range(share))
        return subprocess.Popen(command, env=env)

    return [process(index) for index in range(count)]


def wait(processes: list[subprocess.Popen], grace_s: float) -> int:
    """The job's exit status. After the first failure the others have `grace_s` to abort before they are killed."""
    deadline = None
    while any(process.poll() is None for process in processes):
        failed = [process.returncode for process in processes if process.returncode]
        if failed and deadline is None:
            deadline = time.monotonic() + grace_s
            print(f"launch: a process ended with status {failed[0]}; waiting for the others", file=sys.stderr)
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.2)
    codes = [process.returncode for process in processes]
    return BAD_INPUT if BAD_INPUT in codes else next((code for code in codes if code), 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of this machine, shared out evenly")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--grace", type=float, default=150.0, help="seconds that surviving processes have to abort")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("no command: put it after --")
    if "--resume" not in command:
        command = [*command, "--resume"]

    processes: list[subprocess.Popen] = []
    told = []

    def pass_on(number, _):
        told.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    for attempt in range(args.restarts + 1):
        processes[:] = start(command, args.processes, args.gpus)
        code = wait(processes, args.grace)
        if code in (0, BAD_INPUT) or told:
            return code
        print(f"launch: the job ended with status {code}; start {attempt + 2}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
