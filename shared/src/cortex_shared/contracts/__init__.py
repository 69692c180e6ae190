"""Messages that cross a process boundary: typed, versioned, readers ignore what they do not know."""
