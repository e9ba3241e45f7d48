"""What a run says of itself: pages, figures, tables, the dataset's card."""
