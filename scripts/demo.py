"""Set fluxtune up and let it teach its small embedded FLUX a new character: about ten minutes, no graphics card."""

from environment import ready_python, run, say

python = ready_python("Install fluxtune and run its demo.")
say("running the demo")
run([python, "-m", "fluxtune.recipes.demo"])
