"""What came of judging estimators: summary, page, pictures, and the folder they go into."""
