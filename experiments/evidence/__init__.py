"""The evidence behind docs/RESULTS.md and docs/WHY.md: studies, measurements at fixed policies, and what they found."""
