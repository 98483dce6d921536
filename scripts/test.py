"""Set fluxtune up with what its tests need, and run them; with --lowest, with the lowest versions it promises."""

from environment import ROOT, install, make_environment, options, run, say

parser = options("Install fluxtune and run its tests.")
parser.add_argument("--lowest", action="store_true", help="with the versions of constraints-lowest.txt; no linters")
asked = parser.parse_args()
if asked.lowest and asked.environment == ROOT / ".venv":
    asked.environment = ROOT / ".venv-lowest"
python = make_environment(asked.environment, run)
install(python, run, "[test]", "constraints-lowest.txt" if asked.lowest else "constraints.txt")
if not asked.lowest:
    say("ruff")
    run([python, "-m", "ruff", "check", "."])
    run([python, "-m", "ruff", "format", "--check", "."], hint="ruff format .")
    say("mypy")
    run([python, "-m", "mypy"])
say("tests")
# One thread a worker: two workers with two threads each would only wait for each other on a small machine.
run([python, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadgroup"], OMP_NUM_THREADS="1")
