"""What a component learns: the objective, its modules, its losses. One file an objective."""
