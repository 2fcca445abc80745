"""The image as it is deployed: what it lets in, how it stops, what it can do without."""
