"""What Cortex's services share."""
