"""What watching costs, beside the same training unwatched and watched by others: `make bench`."""
