"""What a user would write instead of this service: a small program for each, as its documentation advises."""
