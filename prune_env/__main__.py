"""The command `prune-env`: runs a program of the checkout, in any folder."""

from __future__ import annotations

import importlib
import os
import sys
from concurrent.futures import BrokenExecutor
from pathlib import Path

PROGRAMS = {
    "list": "list the agents, environments and models there are",
    "evaluate": "compare agents at equal compute",
    "sweep": "run what a sweep file lists",
    "report": "report on a sweep as one HTML file",
    "leaderboard": "write the page that ranks agents by the committed records",
    "reference": "write the irreducible losses that rho_loss needs",
    "tune": "tune the learning rate of full training",
    "rates": "tune these rates for all tasks of a distribution",
    "learn": "train a policy over pruning decisions",
    "distil": "teach a policy what wins with each kind of trouble",
    "heldout": "judge a policy on tasks that no policy is trained on",
    "proxies": "say which cheap tasks order rules as the real ones do",
    "ceiling": "say what rules could win, by kind of trouble",
    "explain": "show what a policy does and which of its inputs it uses",
    "bench": "measure what the environment costs",
}
CHECKOUT = Path(__file__).resolve().parents[1]  # of an editable installation


def main() -> int:
    """Run the program that the command line names; return its exit status, 2 if there is none of that name."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: prune-env PROGRAM [OPTIONS]; prune-env PROGRAM --help lists the options\n")
        print("\n".join(f"  {program:12}{what}" for program, what in PROGRAMS.items()))
        return 0
    if name not in PROGRAMS:
        return _refused(f"there is no program {name!r}; there are {', '.join(PROGRAMS)}")
    if not (CHECKOUT / "train" / "execution").is_dir():
        return _refused(f"{name} is not in the wheel; in a clone of prune_env's repository: pip install -e '.[train]'")
    # ours come first, whatever files lie in the current folder; the user's own modules are found there
    sys.path.insert(0, str(CHECKOUT))
    sys.path.append(os.getcwd())
    sys.argv[:] = [f"prune-env {name}", *arguments]
    try:
        program = importlib.import_module("train.bench.__main__" if name == "bench" else f"train.{name}")
    except ModuleNotFoundError as error:
        return _refused(f"{name} needs {error.name}; in {CHECKOUT}: pip install -e '.[train]'")
    try:
        return program.main()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it once more
        return 141
    except BrokenExecutor:
        print(f"error: a process of prune-env {name} died: out of memory, or ended", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
