"""Who calls, and what their role allows."""
