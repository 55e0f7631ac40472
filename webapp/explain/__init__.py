"""What a failure means: cause, who can put it right, the exact steps. All of it is data."""
