"""What is wrong with an installation or a machine, and the command that mends it: `fluxtune doctor`."""
