"""Set fluxtune up with what its tests need, and run them."""

from environment import ready_python, run, say

python = ready_python("Install fluxtune and run its tests.", extra="[test]")
say("ruff")
run([python, "-m", "ruff", "check", "."])
run([python, "-m", "ruff", "format", "--check", "."], hint="ruff format .")
say("mypy")
run([python, "-m", "mypy"])
say("tests")
# One thread a worker: two workers with two threads each would only wait for each other on a small machine.
run([python, "-m", "pytest", "-q", "-n", "auto", "--dist", "loadgroup"], OMP_NUM_THREADS="1")
