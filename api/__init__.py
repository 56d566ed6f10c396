"""What people touch: the client, the command line, the reports."""
