"""The agent on each host: runs engines, keeps them alive, and reports what it observes."""
