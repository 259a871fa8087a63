"""Which bits each layer gets and what they cost: policies, costs, budgets. Knows no torch."""
