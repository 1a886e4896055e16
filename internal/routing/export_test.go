package routing

// TakeAllPlaces leaves an endpoint no place for questions.
func (d *Dispatcher) TakeAllPlaces(endpoint string) {
	for _, e := range d.endpoints {
		if e.name == endpoint {
			e.places.limit = func() int { return 0 }
		}
	}
}
