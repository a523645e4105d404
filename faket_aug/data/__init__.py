"""What a `DataLoader` reads: items, patches, epochs, and where a stream of them stands."""
