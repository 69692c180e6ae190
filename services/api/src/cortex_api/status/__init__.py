"""The fleet at a glance, engines, and who is asking."""
