package routing

// TakeAllSlots leaves an endpoint no slot for questions.
func (d *Dispatcher) TakeAllSlots(endpoint string) {
	for _, e := range d.endpoints {
		if e.name == endpoint {
			e.slots.limit = func() int { return 0 }
		}
	}
}
