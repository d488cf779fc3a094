"""What all commands share: the parser and exit statuses, the streams, output and tables."""
