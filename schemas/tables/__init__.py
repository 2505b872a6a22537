"""The parquet tables, column by column: inputs, verdicts, passes, scores and changes."""
