"""The formats in which an edit is written; a row of the table for each."""
