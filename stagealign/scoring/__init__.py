"""What training and evaluation share: contests, verdicts, reward models."""
