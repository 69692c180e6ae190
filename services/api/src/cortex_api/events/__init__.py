"""What happened: the event log, its stream to people, and audit."""
