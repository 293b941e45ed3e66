import { mount } from 'svelte';
import './app.css';
import App from './components/App.svelte';

const target = document.getElementById('app');
if (target === null) throw new Error('index.html has no element #app');

export default mount(App, { target });
