"""Run directories: configs that are checked, rows that survive, signals heeded."""
