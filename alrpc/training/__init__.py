"""How a component learns: its optimizer, its schedule, its random stream, one update; and the sequential engine."""
