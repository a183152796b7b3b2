"""Bytes that only a key holder can read or make: keys derived by purpose, authenticated encryption. Knows no file."""
