"""Will it work? One small request to every engine and judge, before all of them are asked."""
