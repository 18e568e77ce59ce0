"""Linear programmes of transport: vertices, columns, halving, lines, plans of low rank."""
