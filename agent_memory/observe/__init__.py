"""What is told about the library's own state: reads, changes nothing."""
