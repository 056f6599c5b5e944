"""The commands that use the models of finished runs: sam-predict, sam-export and sam-suspects."""
