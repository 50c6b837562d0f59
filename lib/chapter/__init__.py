"""What a chapter shows and keeps: its record, its tables, the figures that recur."""
