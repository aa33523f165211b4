"""The commands: natcheck, stund, natlab."""
