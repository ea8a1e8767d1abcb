"""SimpleTuner's configurations: its options, its datasets, its configuration of LyCORIS. No torch."""
