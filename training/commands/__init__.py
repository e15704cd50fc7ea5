"""Commands that need torch; `tidecast` finds them through the entry-point group `tidecast.commands`."""
