"""What every route shares: bodies, errors, pages, the edge."""
