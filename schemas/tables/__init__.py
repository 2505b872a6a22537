"""The parquet tables, column by column: what each one says of an image, a pass or a score."""
