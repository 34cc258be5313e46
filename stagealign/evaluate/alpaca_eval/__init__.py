"""AlpacaEval 2: official judge, length control, win rates."""
