"""`cortex up`: the whole system on one machine, from a process that stays small."""
