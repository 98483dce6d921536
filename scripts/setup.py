"""Set fluxtune up for this machine: an environment, the torch for its card, fluxtune, and a look at what is wrong.

`setup.sh` and `setup.ps1` find a Python for it. Needs nothing installed.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys

from environment import ROOT, install, make_environment, options, run, say

sys.path.insert(0, str(ROOT))

from fluxtune.environment.card import Graphics, has_nvidia_hardware, look
from fluxtune.environment.torch_builds import BUILDS, CPU, TorchBuild, build_for


def main() -> int:
    """Run the steps; the exit code is that of `fluxtune doctor`."""
    builds = {build.name: build for build in (*BUILDS, CPU)}
    parser = options("Make an environment, install fluxtune with the torch that this machine's card takes, check it.")
    parser.add_argument("--torch", choices=sorted(builds), help="the build of torch; by default found out")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    asked = parser.parse_args()
    do = show if asked.dry_run else run
    if asked.torch:
        build, reason = builds[asked.torch], "as asked for"
    else:
        build, reason = choose(look())
    python = make_environment(asked.environment, do)
    say(f"torch {build.torch} ({build.name}): {reason}")
    if platform.system() != "Darwin":  # whose only build is the one of PyPI
        _install_torch(python, build, asked.dry_run)
    install(python, do, constraints="constraints.txt" if build.torch == CPU.torch else None)
    say("fluxtune doctor")
    doctor = [python, "-m", "fluxtune", "doctor"]
    if asked.dry_run:
        show(doctor)
        return 0
    code = subprocess.run(doctor, cwd=ROOT).returncode
    say(f"fluxtune is in {asked.environment.resolve()}; to use it: {_activation(asked.environment.resolve())}")
    return code


def choose(graphics: Graphics) -> tuple[TorchBuild, str]:
    """The build for this machine, and why. Where the driver is what is wrong, the one to use once it is mended."""
    card = graphics.foremost
    if card is not None:
        named = f"for {card.name}, driver {graphics.driver}"
        if build := build_for(graphics.cuda, card.capability):
            return build, named
        if build := build_for(None, card.capability):
            return build, f"{named}, which is too old for it"
        return CPU, f"nothing newer is built {named}"
    if graphics.trouble is not None or has_nvidia_hardware():
        return BUILDS[0], f"there is a card, but its driver does not work ({graphics.trouble or 'no nvidia-smi'})"
    return CPU, "no NVIDIA card was found"


def _install_torch(python: str, build: TorchBuild, dry_run: bool) -> None:
    """Install that build; where it cannot be had, PyPI's comes with fluxtune, and doctor says whether it will do."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", build.requirement, "--index-url", build.index]
    if dry_run:
        show(command)
    elif subprocess.run(command, cwd=ROOT).returncode:
        say(f"{build.requirement} could not be had from {build.index}; going on with what pip finds elsewhere")


def show(command: list[str], hint: str = "") -> None:
    """Print a command instead of running it."""
    print(shlex.join(command))


def _activation(folder: object) -> str:
    if platform.system() == "Windows":
        return f"& '{folder}\\Scripts\\Activate.ps1'"
    return f". {shlex.quote(f'{folder}/bin/activate')}"


if __name__ == "__main__":
    sys.exit(main())
